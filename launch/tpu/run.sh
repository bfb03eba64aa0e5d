#!/usr/bin/env bash
# One command of this repository on all hosts of a Cloud TPU VM:
#
#   TPU=patchwork ZONE=us-east5-a TYPE=v5p-32 CHIPS=16 launch/tpu/run.sh \
#     train.py --config=configs/tiny.py --workdir=/shared/runs/tiny \
#     --set batch_size=16 --set data.directory=/shared/patchwork
#
# Makes the TPU VM if there is none, or another one if it was preempted or could
# not be installed.
set -uo pipefail

: "${TPU:?names the TPU VM}" "${ZONE:?names its zone}" "${TYPE:?as v5p-32}"
VERSION=${VERSION:-v2-alpha-tpuv5}
# Run on every host of a new VM, to mount the shared disk; see README.md.
SETUP=${SETUP:-true}
RESTARTS=${RESTARTS:-20}

if (($# == 0)); then
  echo 'run.sh: name a command, as train.py --config=... --workdir=...' >&2
  exit 2
fi
tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_all() { tpu ssh "$TPU" --worker=all --command="$1"; }

# Python 3.11 is not what the image has.
INSTALL="mkdir -p patchwork && tar -xf patchwork.tar -C patchwork &&
  sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv &&
  python3.11 -m venv ~/venv && cd patchwork &&
  ~/venv/bin/pip install -q -c constraints.txt -e '.[tpu]'"

install() {
  git archive --output="$archive/patchwork.tar" HEAD &&
    tpu scp "$archive/patchwork.tar" "$TPU:" --worker=all &&
    on_all "$INSTALL" && on_all "$SETUP" && on_all 'touch installed'
}

# Is there a VM, whose hosts have all been installed to the end?
is_ready() {
  [[ $(tpu describe "$TPU" --format='value(state)' 2>/dev/null) == READY ]] &&
    on_all 'test -e installed'
}

make() {
  tpu delete "$TPU" --quiet 2>/dev/null # What a preemption leaves.
  tpu create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" --spot ||
    return
  install && return
  tpu delete "$TPU" --quiet # Nothing can run there, and it is paid for.
  return 1
}

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT

printf -v quoted '%q ' "$@"
if [[ $1 == train.py ]]; then
  # What the run needs, on this machine, before a TPU is paid for.
  "${PYTHON:-.venv/bin/python}" "$@" --dry_run --chip="${CHIP:-v5p}" \
    ${CHIPS:+--devices="$CHIPS"} || exit
  # A run that SIGTERM has stopped is not done.
  quoted+='--stop_code=75'
fi

for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
  if is_ready || make; then
    # JAX asks the TPU VM who the others are.
    if on_all "cd patchwork && exec ~/venv/bin/python $quoted --coordinator=auto"
    then
      exit 0
    fi
  fi
  echo "run.sh: attempt $((attempt + 1)) of $((RESTARTS + 1)) ended" >&2
  sleep "${PAUSE:-60}"
done
exit 1
