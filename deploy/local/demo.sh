#!/usr/bin/env bash
# Builds if needed, starts 1 router, 1 prefill worker, 1 decode worker and 2 expert shards on loopback with the demo
# checkpoint, asks it three verses over gRPC and shuts everything down.
#   deploy/local/demo.sh [--keep]       --keep: leave it running and say how to talk to it
set -euo pipefail
cd "$(dirname "$0")/../.."

keep=0
for argument in "$@"; do
  case "$argument" in
    --keep) keep=1 ;;
    *) echo "demo.sh: unknown argument $argument; wanted --keep" >&2; exit 2 ;;
  esac
done

bin=$(deploy/local/build.sh | tail -n 1)
folder=$(mktemp -d)
up=
stop() {
  if [ -n "$up" ]; then
    kill -TERM "$up" 2>/dev/null || true
    wait "$up" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap stop EXIT

echo "Starting 1 router, 1 prefill worker, 1 decode worker and 2 expert shards" >&2
"$bin/cachalot" up --model models/demo --prefill 1 --decode 1 --expert-shards 2 --grpc-port 0 \
  > "$folder/ready" 2> "$folder/log" &
up=$!
for _ in $(seq 1 600); do
  grep -q '^ready ' "$folder/ready" && break
  kill -0 "$up" 2>/dev/null || { cat "$folder/log" >&2; echo "demo.sh: the cluster did not start" >&2; exit 1; }
  printf '.' >&2
  sleep 0.1
done
printf '\n' >&2
read -r _ address pids < "$folder/ready"
[ -n "${address:-}" ] || { cat "$folder/log" >&2; echo "demo.sh: not ready after 60 s" >&2; exit 1; }
echo "Ready at $address, processes $pids" >&2

"$bin/cachalot" demo --router "$address"

if [ "$keep" = 1 ]; then
  trap - EXIT
  cat >&2 <<END
Still running. Talk to it:
  $bin/cachalot chat --router $address
  $bin/cachalot generate --router $address --chat "Proverbs 3:5" --max-tokens 100
Stop it: kill $up        Log: $folder/log
END
  disown "$up"
fi
