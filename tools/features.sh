#!/usr/bin/env bash
# Lints the library of `tidespool` with each of its features alone and with none, and runs its unit
# tests with none. `cargo test` runs them with all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

features="$(awk '/^\[/ { inside = /^\[features\]/ } inside && /^[a-z]/ && !/^default / { print $1 }' crates/tidespool/Cargo.toml)"
for feature in "" $features; do
    printf -- '-- features: %s\n' "${feature:-none}"
    cargo clippy -p tidespool --all-targets --no-default-features --features "$feature" -- -D warnings
done
cargo test -p tidespool --lib --no-default-features
