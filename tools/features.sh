#!/usr/bin/env bash
# Lints `tidespool` and `tidespool-pressure` with each of their features alone and with none, and
# runs their unit tests with none. `cargo test` runs them with all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for crate in tidespool pressure; do
    manifest="crates/$crate/Cargo.toml"
    features="$(awk '/^\[/ { inside = /^\[features\]/ } inside && /^[a-z]/ && !/^default / { print $1 }' "$manifest")"
    for feature in "" $features; do
        printf -- '-- %s, features: %s\n' "$crate" "${feature:-none}"
        cargo clippy --manifest-path "$manifest" --all-targets --no-default-features --features "$feature" -- -D warnings
    done
    cargo test --manifest-path "$manifest" --lib --no-default-features
done
