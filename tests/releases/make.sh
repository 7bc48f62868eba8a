#!/bin/sh
# Makes the backup of a small server, with what it answered, of the release of a binary:
#   tests/releases/make.sh target/release/argus
# Run it once for each release, and commit the file: later versions must open it.
set -eu
argus=$(realpath "$1")
version=$("$argus" --version | cut -d' ' -f2)
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
"$argus" serve --data data --listen 127.0.0.1:0 >listening 2>log &
server=$!
until grep -q listening listening; do
    kill -0 "$server" || { cat log; exit 1; }
    sleep 0.05
done
api=$(sed 's/argus listening on //' listening)/api/v1
json='Content-Type: application/json'
batch() {
    curl -sf "$api/batches" -H "$json" -d "{\"vehicle_id\":\"veh-$1\",\"vin\":\"WVWZZZ1JZXW00000$1\",\"firmware\":\"7.2.$1\",\"platform\":\"mk4\",\"labels\":{\"site\":\"a\"}}" |
        sed 's/.*"id":"\([^"]*\)".*/\1/'
}
for vehicle in 1 2 3; do
    id=$(batch "$vehicle")
    printf '2026-03-01T10:00:00Z ERROR [bms] DTC P0A1F-87 stored\n2026-03-01T10:00:01Z WARN [ota] E_FAIL_%s\n' "$vehicle" |
        curl -sf -X PUT --data-binary @- "$api/batches/$id/files/ota.log" >answer
    printf 'E_REPLACED\n' | curl -sf -X PUT --data-binary @- "$api/batches/$id/files/twice.log" >answer
    printf '2026-03-01T11:00:00Z ERROR SIGSEGV\n' | gzip |
        curl -sf -X PUT -H 'Content-Encoding: gzip' --data-binary @- "$api/batches/$id/files/twice.log" >answer
    printf '2026-03-01T12:00:00Z ERROR E_APPEND' | curl -sf --data-binary @- "$api/batches/$id/files/live.log/lines" >answer
    printf 'ED\nE_OPEN' | curl -sf --data-binary @- "$api/batches/$id/files/live.log/lines" >answer
    curl -sf -X POST "$api/batches/$id/complete" >answer
done
# These are in the tables, and what follows only in the journal.
metric() { curl -sf "${api%/api/v1}/metrics" | sed -n "s/^$1 //p"; }
until [ "$(metric argus_committed_epoch)" = "$(metric argus_epoch)" ]; do sleep 0.05; done
id=$(batch 4)
printf 'E_PENDING\n' | curl -sf -X PUT --data-binary @- "$api/batches/$id/files/a.log" >answer
curl -sf -X PUT -H "$json" -d '{"meaning":"it failed","remedy":"repeat it"}' "$api/catalog/E_FAIL_1" >answer
mkdir release
"$argus" backup release/backup --data data
counts='SELECT b.vin, b.status, c.file, c.code, c.severity, c.count, c.first_seen FROM error_counts c JOIN batches b USING (batch_id) ORDER BY 1, 3, 4'
lines='SELECT file, line, code, level, component, text FROM errors JOIN batches USING (batch_id) ORDER BY vin, file, line, code'
meanings="SELECT code, meaning, remedy FROM catalog WHERE source = 'user'"
{
    for sql in "$counts" "$lines" "$meanings"; do
        printf '{"sql":"%s","answer":' "$sql"
        curl -sf "$api/query" -H "$json" -d "{\"sql\":\"$sql\"}"
        printf '}\n'
    done
} >release/answers.jsonl
tar -C release -cf - backup answers.jsonl | zstd -q -19 -f -o "$here/$version.tar.zst"
echo "$here/$version.tar.zst"
