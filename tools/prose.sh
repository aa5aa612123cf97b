#!/usr/bin/env bash
# Reports prose that breaks the rules of CONTRIBUTING.md, "Prose": comments and Markdown over 100
# columns (tables, links and code blocks apart), and idioms that speak of software as of a person.
# Usage: tools/prose.sh [PATH...]   (default: the whole project). Exit status 1 if there is any.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

git ls-files --cached --others --exclude-standard -- "${@:-.}" |
    grep -E '\.(rs|md|sh|toml)$' |
    LC_ALL=C xargs awk '
    function report(what) {
        printf "%s:%d: %s: %s\n", FILENAME, FNR, what, substr($0, 1, 160)
        found = 1
    }
    BEGIN {
        idioms = "(^|[^a-z_])(tells?|told|telling|hears?|heard|knows|speaks?|whoever|nobody|somebody|" \
            "in vain|of no account|its word|the word of|is asked for its)([^a-z_]|$)"
    }
    FNR == 1 { fenced = 0 }
    FILENAME ~ /\.md$/ && /^ *```/ { fenced = !fenced }
    {
        is_prose = FILENAME ~ /\.md$/ ? !fenced && !/^ *\|/ : FILENAME ~ /\.rs$/ ? /^ *\/\// : /^ *#/
        # A table, or a single word that cannot be wrapped.
        is_whole = /^ *\/\/[\/!]? *\|/ || /^[^ ]* *[^ ]* *[^ ]+$/
        # Characters, not bytes, whichever awk this is.
        characters = $0
        gsub(/[\200-\277]/, "", characters)
        if (is_prose && !is_whole && length(characters) > 100) report("over 100 columns (" length(characters) ")")
        line = tolower($0)
        if (FILENAME !~ /tools\/prose\.sh$/ && match(line, idioms)) {
            word = substr(line, RSTART, RLENGTH)
            gsub(/^[^a-z]+|[^a-z]+$/, "", word)
            report("idiom \"" word "\"")
        }
    }
    END { exit found }'
