#!/usr/bin/env bash
# Asks a served model about an image and prints the answer as it comes.
#
#   examples/ask.sh IMAGE QUESTION [MODEL]
#
# LLAVA_URL       where the router is; http://localhost:8080 when unset
# LLAVA_API_KEY   a key, where the router asks for one
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
image=$1 question=$2 model=${3:-}
url=${LLAVA_URL:-http://localhost:8080}

call() {
  curl --silent --show-error --no-buffer --fail-with-body \
    ${LLAVA_API_KEY:+--header "authorization: Bearer $LLAVA_API_KEY"} "$@"
}

quote() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g' | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }')"; }

# A port that was just forwarded opens a moment later. Only this call waits for it: what
# is asked below must not be asked twice.
models=$(call --retry 20 --retry-connrefused --retry-delay 1 "$url/v1/models")
if [ -z "$model" ]; then
  model=$(grep -o '"id": *"[^"]*"' <<<"$models" | head -n 1 | cut -d'"' -f4) || true
  [ -n "$model" ] || { echo "$url serves no model: kubectl get lld" >&2; exit 1; }
fi

case $image in
  *.jpg | *.jpeg) type=image/jpeg ;;
  *.webp) type=image/webp ;;
  *) type=image/png ;;
esac

# The image travels inside the request, so the body comes from standard input:
# it can be longer than a command line may be.
{
  printf '{"model": %s, "stream": true, "messages": [{"role": "user", "content": [' "$(quote "$model")"
  printf '{"type": "image_url", "image_url": {"url": "data:%s;base64,' "$type"
  base64 <"$image" | tr -d '\n'
  printf '"}}, {"type": "text", "text": %s}]}]}' "$(quote "$question")"
} | call "$url/v1/chat/completions" --header 'content-type: application/json' --data-binary @- |
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      *'"error"'*) printf '%s\n' "${line#data: }" >&2; exit 1 ;;
      'data: {'*)
        # The text of a chunk's one `content`; printf undoes all of JSON's escapes but \".
        text=$(printf '%s\n' "$line" |
          sed -n 's/.*"content": *"\(\([^"\\]\|\\.\)*\)".*/\1/; t found; d; :found; s/\\\\/\x01/g; s/\\"/"/g; s/\x01/\\\\/g; p')
        printf '%b' "$text" ;;
    esac
  done
echo
