#!/bin/sh
# chat.sh [QUESTION] - one streamed answer of a running sluiced. SLUICE_URL: another server; SLUICE_API_KEY: its key.
url=${SLUICE_URL:-http://127.0.0.1:8000}
question=$(printf %s "${1:-What is a sluice?}" | sed 's/\\/\\\\/g; s/"/\\"/g')
model=$(curl -sf ${SLUICE_API_KEY:+-H "Authorization: Bearer $SLUICE_API_KEY"} "$url/v1/models" | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -n 1)
[ -n "$model" ] || { echo "chat.sh: no server at $url" >&2; exit 1; }
curl -N -sS ${SLUICE_API_KEY:+-H "Authorization: Bearer $SLUICE_API_KEY"} "$url/v1/chat/completions" -H 'Content-Type: application/json' \
    -d "{\"model\": \"$model\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"
