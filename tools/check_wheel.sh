#!/bin/bash
# Installs a wheel in a clean virtual environment, outside the checkout, and asks the model there a question.
#   tools/check_wheel.sh WHEEL MODELS_FOLDER        (PYTHON chooses the interpreter)
# These are the steps of docker/Dockerfile, for machines without a container engine.
set -euo pipefail

wheel=$(realpath "$1")
models=$(realpath "$2")
folder=$(mktemp -d)
server=""
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap finish EXIT

cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check "$wheel"
venv/bin/shale --version

port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export SHALE_HOST=127.0.0.1:$port SHALE_MODELS=$models
venv/bin/shale serve >server.log 2>&1 &
server=$!

venv/bin/python - <<'PYTHON' || { cat server.log >&2; exit 1; }
import json, os, sys, time, urllib.error, urllib.request

url = "http://" + os.environ["SHALE_HOST"]
deadline = time.monotonic() + 30
while True:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=1)
        break
    except (urllib.error.URLError, OSError):
        if time.monotonic() > deadline:
            sys.exit("the server does not answer")
        time.sleep(0.1)
question = {"role": "user", "content": "What does textwrap.dedent do?"}
body = {"model": "shale-demo", "messages": [question], "stream": False, "options": {"temperature": 0}}
answer = json.load(urllib.request.urlopen(f"{url}/api/chat", json.dumps(body).encode(), timeout=60))
print(answer["message"]["content"])
sys.exit("Remove any common leading whitespace" not in answer["message"]["content"])
PYTHON
echo "$(basename "$wheel") works outside the checkout"
