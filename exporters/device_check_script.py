"""check_device.sh itself: POSIX sh, awk and sha256sum, with places for a release's facts."""

from __future__ import annotations

# Exit codes as soup's: 0 passed, 1 a file or an output is not as sealed, 2 usage or a full disk, 6 a tool or a GPU is
# missing, 7 the engine does not build or run.
SCRIPT = r"""#!/bin/sh
# Checks this release on a device without edgesoup: the files' hashes, the engine that trtexec builds here, and what it
# answers on the golden samples. For @TARGET@ (TensorRT @TENSORRT@).
# usage: sh check_device.sh [FOLDER]    FOLDER takes engine and logs (default: /tmp/soup-device-check)
# TRTEXEC=/path/to/trtexec names the tool where it is not found. Exit: 0 passed, 1 failed, 2 usage, 6 missing, 7 build.
set -u
LC_ALL=C
export LC_ALL

say() { printf '%s\n' "check_device: $*"; }
stop() {
    code=$1
    shift
    printf '%s\n' "check_device: $*" >&2
    exit "$code"
}

[ $# -le 1 ] || stop 2 "expected one folder at most, got $# arguments. Usage: sh check_device.sh [FOLDER]"
out=${1:-${TMPDIR:-/tmp}/soup-device-check}
mkdir -p "$out" || stop 2 "$out: cannot be made. Name a folder that can be written to."
out=$(CDPATH='' cd -- "$out" && pwd) || stop 2 "$out: cannot be entered. Name another folder."
case ${TRTEXEC:-} in
    /* | '') ;;
    */*) TRTEXEC=$(pwd)/$TRTEXEC ;;
esac
case $0 in
    */*) CDPATH='' cd -- "${0%/*}" || stop 2 "${0%/*}: cannot be entered." ;;
esac

for tool in sha256sum awk; do
    command -v "$tool" >/dev/null 2>&1 || stop 6 "$tool is not installed. Install coreutils and an awk (mawk or gawk)."
done

# 1. The files are the release's.
[ -f '@SUMS@' ] || stop 1 "@SUMS@ is missing. Copy the whole release folder."
if ! sha256sum -c '@SUMS@' >"$out/hashes.log" 2>&1; then
    grep -v ': OK$' "$out/hashes.log" >&2
    stop 1 "files are not as they were sealed (see $out/hashes.log). Copy the release again."
fi
say "files are as they were sealed"

# 2. trtexec.
if [ -n "${TRTEXEC:-}" ]; then
    trtexec=$TRTEXEC
elif command -v trtexec >/dev/null 2>&1; then
    trtexec=trtexec
else
    trtexec=/usr/src/tensorrt/bin/trtexec
fi
command -v "$trtexec" >/dev/null 2>&1 ||
    stop 6 "trtexec is not found, neither on PATH nor in /usr/src/tensorrt/bin. Install it" \
        "(sudo apt-get install nvidia-jetpack), or set TRTEXEC."

# 3. The engine: built here, or the one that was built here from the same ONNX file.
engine=$out/model.engine
stamp=$out/model.engine.from
if [ -f "$engine" ] && [ "$(cat "$stamp" 2>/dev/null)" = '@ONNX_SHA256@ @BUILD_FLAGS@' ]; then
    say "the engine of an earlier run is used: $engine"
else
    rm -f "$engine" "$stamp"
    say "building the engine, which takes minutes: $engine"
    # shellcheck disable=SC2086
    "$trtexec" '--onnx=@ONNX@' "--saveEngine=$engine" @BUILD_FLAGS@ >"$out/build.log" 2>&1 || rm -f "$engine"
    if [ ! -s "$engine" ]; then
        rm -f "$engine"
        tail -n 15 "$out/build.log" >&2
        stop 7 "trtexec did not build the engine (see $out/build.log)."
    fi
    printf '%s\n' '@ONNX_SHA256@ @BUILD_FLAGS@' >"$stamp" || stop 2 "$stamp: cannot be written."
fi

# 4. The golden samples. A value that is no finite number fails.
compare() {
    awk -v name="$3" -v limit="$4" -v total="$5" -v want="golden/$1.out$2.txt" '
        function number(text) { return text ~ /^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$/ }
        { text = text $0 " " }
        END {
            while ((got = (getline line < want)) > 0) expected[++count] = line
            if (got < 0 || count == 0) { print "output " name ": " want " cannot be read"; exit 1 }
            gsub(/[ \t]*:[ \t]*/, ":", text)
            start = index(text, "\"name\":\"" name "\"")
            if (start == 0) { print "output " name ": not among the outputs of the engine"; exit 1 }
            text = substr(text, start)
            start = index(text, "\"values\":")
            text = substr(text, start + 9)
            sub(/^[^\[]*\[/, "", text)
            sub(/\].*/, "", text)
            gsub(/[ \t\r]/, "", text)
            found = split(text, value, ",")
            if (found != total + 0) { print "output " name ": " found " values, expected " total; exit 1 }
            for (place = 1; place <= count; place++) {
                if (!number(value[place])) {
                    print "output " name ": value " place " is " value[place] ", no finite number"
                    exit 1
                }
                off = value[place] - expected[place]
                if (off < 0) off = -off
                if (off > worst) worst = off
            }
            verdict = worst <= limit + 0 ? "passed" : "FAILED"
            printf "output %s: largest difference %.3g, allowed %.3g: %s\n", name, worst, limit, verdict
            exit (verdict == "passed" ? 0 : 1)
        }' "$out/$1.json" >>"$out/result.txt"
}

failed=0
: >"$out/result.txt" || stop 2 "$out/result.txt: cannot be written."
# shellcheck disable=SC2043
for run in @RUNS@; do
    rm -f "$out/$run.json"
    # shellcheck disable=SC2086
    if ! "$trtexec" "--loadEngine=$engine" @RUN_FLAGS@ "--loadInputs=@LOADS@" "--exportOutput=$out/$run.json" \
        --iterations=1 --warmUp=0 --duration=0 >"$out/run.log" 2>&1 || [ ! -s "$out/$run.json" ]; then
        tail -n 15 "$out/run.log" >&2
        stop 7 "trtexec did not run the engine on batch $run (see $out/run.log). If TensorRT was changed since," \
            "remove $engine and start again."
    fi
@COMPARE@
done

if [ "$failed" -ne 0 ]; then
    grep -v ': passed$' "$out/result.txt" >&2
    stop 1 "outputs are not the release's, by the lines above (all in $out/result.txt)."
fi
tail -n 1 "$out/result.txt"
say "passed: every golden sample is within tolerance (all in $out/result.txt)"
"""
