#!/usr/bin/env bash
# All that a GPU is asked for, in one call: its tests, its benchmarks, and in what time is left the training of the
# packaged encoder small-wavlm, which goes on where the last call stopped.
#
#     benchmarks/gpu.sh FOLDER                       # ten minutes
#     MINUTES=30 WHEELS=wheels benchmarks/gpu.sh FOLDER
#     QUICK=1 MINUTES=8 benchmarks/gpu.sh FOLDER     # a rehearsal in tiny sizes, on a CPU too
#
# FOLDER gets log.txt, tests.txt, the records, benchmarks.md and what was trained, in pieces of 15 MB: training.tar.*
# (the encoder when it is done, else what the next call with the same FOLDER goes on from). No file is larger.
#
#     MINUTES    of all, 10 by default: tests take a quarter at most, benchmarks half
#     WHEELS     folder of wheels that Python here lacks: installed without a network into an environment of its own
#     PYTHON     the interpreter, python3 by default
#     BENCHMARKS names of run_all.py's, all by default
#     RECIPE     further words for recipes/pretrain_small.py, such as training.updates=1000
#     SPEECH_ADAPTERS_DATA   speech; without it cache, together and the training are left out
set -euo pipefail
[[ $# -eq 1 ]] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }
mkdir -p "$1"
folder=$(realpath "$1") wheels=${WHEELS:+$(realpath "$WHEELS")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
exec > >(tee -a "$folder/log.txt") 2>&1
end=$((SECONDS + 60 * ${MINUTES:-10}))
left() { echo $((end - SECONDS)); }
at_most() { echo $(($(left) < $1 ? $(left) : $1)); }
part=$((15 * ${MINUTES:-10})) # a quarter, in seconds
python=${PYTHON:-python3}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TQDM_MININTERVAL=60

if [[ -n $wheels ]]; then
    "$python" -m venv --system-site-packages "$work/environment"
    python=$work/environment/bin/python
    "$python" -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
fi
device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
echo "$device, $(nproc --all) cores, ${MINUTES:-10} minutes"

echo "== tests"
mapfile -t files < <(grep -l "mark\.gpu" tests/test_*.py) # the others need not be read
timeout -k 10 "$(at_most $part)" "$python" -m pytest -q -m gpu -p no:cacheprovider "${files[@]}" \
    > "$folder/tests.txt" 2>&1 || echo "tests: exit code $?"
tail -n 1 "$folder/tests.txt"

echo "== benchmarks"
# shellcheck disable=SC2086
"$python" benchmarks/run_all.py --folder "$folder" --minutes "$(awk "BEGIN {print $(at_most $((2 * part))) / 60}")" \
    ${QUICK:+--quick} ${BENCHMARKS:-} || echo "benchmarks: exit code $?"

echo "== training, $(left) s"
if [[ -z ${SPEECH_ADAPTERS_DATA:-} ]]; then
    echo "training: not run, it needs speech; set SPEECH_ADAPTERS_DATA"
    exit
fi
if compgen -G "$folder/training.tar.*" > /dev/null; then
    cat "$folder"/training.tar.* | tar -x -C "$work"
    [[ -d $work/small/encoder ]] && { echo "training: done by an earlier call"; exit; }
fi
words=(--config recipes/pretrain_small.yaml "device=$device" "output=$work/small")
if [[ -n ${QUICK:-} ]]; then # two updates on some minutes of speech
    words+=(train=manifests/ser_emodb_train.jsonl held_out=manifests/ser_emodb_dev.jsonl speeds=1.0 start_crops=2)
    for setting in updates=2 batch_frames=152 crop_frames=152 crop_shares=1.0 clusters=8 statistics_batches=2; do
        words+=("training.$setting")
    done
fi
# SIGTERM saves; a minute is kept for that and for the packing. ${RECIPE} holds words.
# shellcheck disable=SC2086
timeout -s TERM -k 40 "$(($(left) > 65 ? $(left) - 60 : 5))" "$python" recipes/pretrain_small.py "${words[@]}" ${RECIPE:-} ||
    echo "training: exit code $?"
if [[ -d $work/small ]]; then
    rm -f "$folder"/training.tar.*
    kept=small
    [[ -d $work/small/encoder ]] && kept="small/encoder small/results.json small/config.yaml"
    # shellcheck disable=SC2086
    tar -c -C "$work" $kept | split -b 15M -d -a 3 - "$folder/training.tar."
    du -h --total "$folder"/training.tar.* | tail -n 1
fi
