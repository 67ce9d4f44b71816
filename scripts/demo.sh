#!/usr/bin/env bash
# Start a cluster on this machine, ask it one question, stop it. Whatever happens, nothing stays behind.
set -euo pipefail
cd "$(dirname "$0")/.."
baton=.venv/bin/baton
prompt="${1:-Why is the sky blue? Answer in two sentences.}"
trap '"$baton" down --name local >/dev/null 2>&1 || true' EXIT INT TERM
"$baton" up --detach
echo
"$baton" generate "$prompt" --max-tokens "${MAX_TOKENS:-160}" --temperature 0
"$baton" down --name local
trap - EXIT INT TERM
