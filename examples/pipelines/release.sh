#!/usr/bin/env bash
# Check, build, export and verify, and let nothing ship that may not: ends with the exit code of the first soup command
# that does not end with 0.
#
#   usage: release.sh VAL_YAML [KEY=VALUE ...]        each KEY=VALUE is handed to check and build as --set
#
#   OUT=soup-out          build folder; the release is OUT/release
#   ARTIFACTS=artifacts   what a pipeline keeps, of a blocked release too: a JSON document per command, reports, JUnit
#   EXPORT_OPTIONS=       more options of soup export, as in "--trt --compute-capability 8.7"
#   ALLOW_INCONCLUSIVE=   1: a gate that these samples cannot decide does not block
set -euo pipefail

val=${1:?"usage: release.sh VAL_YAML [KEY=VALUE ...]"}
out=${OUT:-soup-out}
artifacts=${ARTIFACTS:-artifacts}
sets=("${@:2}")
sets=("${sets[@]/#/--set=}")
allow=()
[[ ${ALLOW_INCONCLUSIVE:-} != 1 ]] || allow=(--allow-inconclusive)
read -ra export_options <<< "${EXPORT_OPTIONS:-}"

reason() {
    case $1 in
        1) echo "a check failed: a hash, an output or a contract is not what it was" ;;
        2) echo "something in the configuration or the input is to be mended" ;;
        3) echo "an accuracy or gain gate failed: this model must not ship" ;;
        4) echo "a latency gate failed: this model must not ship" ;;
        5) echo "a gate could not be decided: give it more samples, or set ALLOW_INCONCLUSIVE=1" ;;
        6) echo "this machine could not do what was asked, or did not run what gates.require names" ;;
        7) echo "the ONNX file or the engine could not be built" ;;
        130) echo "interrupted" ;;
        *) echo "a bug, with its traceback above" ;;
    esac
}

# Runs `soup COMMAND …`; its document goes to $artifacts/COMMAND.json, its progress to the log. Ends the script unless 0.
step() {
    local code=0
    echo "== soup $*" >&2
    soup "$@" --json > "$artifacts/$1.json" || code=$?
    (( code == 0 )) && return
    echo "blocked by soup $1, exit $code: $(reason "$code")" >&2
    exit "$code"
}

# Reports of this run, also where it was blocked; those of an earlier one are older than this run's check.json.
collect() {
    local file
    for file in "$out"/{recipe.json,report.html} "$out"/release/{junit.xml,manifest.json,report.html,report.json}; do
        [[ ! $file -nt $artifacts/check.json ]] || cp "$file" "$artifacts/$(basename "$(dirname "$file")")-${file##*/}"
    done
}

mkdir -p "$artifacts"
trap collect EXIT
step check --val "$val" -o "$out" "${sets[@]}"
step build --val "$val" -o "$out" "${sets[@]}" "${allow[@]}"
step export "$out" "${export_options[@]}" "${allow[@]}"
step verify "$out/release" -o "$artifacts/verify" "${allow[@]}"
echo "released: $out/release" >&2
