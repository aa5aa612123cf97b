#!/usr/bin/env bash
# Finds import cycles between the modules of crates/tidespool/src and of crates/pressure/src, and
# between the files and folders within each of them. Tests are left out, and `mod.rs`, which names
# what is below it. Exit status 1 if there is a cycle: it is printed with its imports.
#
# Usage: tools/cycles.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../crates"

# Lines "folder from to file": a file below folder/from imports something below folder/to. In the
# current directory.
imports() {
    LC_ALL=C awk '
    function parent(module) { return module ~ /::/ ? substr(module, 1, match(module, /::[^:]*$/) - 1) : "" }
    function join(module, name) { return module == "" ? name : module "::" name }

    # Notes every path in `text`, which follows `prefix::`: one path, or a group in braces.
    function note(prefix, text,    name, depth, i, c, start) {
        sub(/^[ \t]+/, "", text)
        if (match(text, /^[A-Za-z0-9_]+/)) {
            name = substr(text, 1, RLENGTH)
            text = substr(text, RLENGTH + 1)
            if (name == "super") note(parent(prefix), substr(text, 3))
            else if (text ~ /^::/) note(join(prefix, name), substr(text, 3))
            else {
                sub(/^ as /, "", text)
                path[++paths] = join(prefix, name)
                importer[paths] = module
                file[paths] = FILE
                if (reexports) alias[join(module, match(text, /^[A-Za-z0-9_]+/) ? substr(text, 1, RLENGTH) : name)] = prefix
            }
        } else if (text ~ /^\{/) {
            start = 2
            for (i = 1; i <= length(text); i++) {
                c = substr(text, i, 1)
                if (c == "{") depth++
                if (c == "}") depth--
                if ((c == "," && depth == 1) || depth == 0) { note(prefix, substr(text, start, i - start)); start = i + 1 }
                if (depth == 0) break
            }
        }
    }

    # The module that `path` leads into, through names that a `mod.rs` or `lib.rs` exports again.
    function resolve(path,    parts, n, i, at, next_) {
        n = split(path, parts, "::")
        for (i = 1; i <= n; i++) {
            next_ = join(at, parts[i])
            if (next_ in modules) at = next_
            else return next_ in alias ? resolve(alias[next_]) : at
        }
        return at
    }

    # The first name of `module` below `folder`.
    function below(module, folder) {
        if (folder != "" && index(module, folder "::") != 1) return ""
        module = folder == "" ? module : substr(module, length(folder) + 3)
        sub(/::.*/, "", module)
        return module
    }

    function finish(    rest, statement, keyword) {
        gsub(/pub *\(in [^)]*\)/, "pub", text)
        # `pub use child::...` in a `mod.rs` or in `lib.rs`.
        reexports = FILE ~ /(^|\/)(mod|lib)\.rs$/
        rest = text
        while (reexports && match(rest, /pub(\([a-z]+\))? use [a-z_]+::/)) {
            statement = substr(rest, RSTART)
            rest = substr(rest, RSTART + RLENGTH)
            sub(/^pub(\([a-z]+\))? use /, "", statement)
            if (statement !~ /^(crate|super|self)::/) note(module, statement)
        }
        reexports = 0
        rest = text
        while (match(rest, /(crate|super)::/)) {
            keyword = substr(rest, RSTART, 5)
            rest = substr(rest, RSTART + RLENGTH)
            note(keyword == "crate" ? "" : parent(module), rest)
        }
    }

    FNR == 1 {
        if (NR > 1) finish()
        FILE = FILENAME
        module = FILENAME
        sub(/\.rs$/, "", module)
        sub(/(^|\/)(mod|lib)$/, "", module)
        gsub(/\//, "::", module)
        modules[module] = 1
        text = ""
        is_test = 0
    }
    /^(pub(\([a-z]+\))? )?mod tests \{/ { is_test = 1 }
    !is_test { sub(/\/\/.*/, ""); text = text " " $0 }
    END {
        finish()
        for (i = 1; i <= paths; i++) {
            from = importer[i]
            to = resolve(path[i])
            for (folder = parent(from); ; folder = parent(folder)) {
                a = below(from, folder)
                b = below(to, folder)
                if (a != "" && b != "" && a != b) print (folder == "" ? "src" : folder), a, b, file[i]
                if (folder == "") break
            }
        }
    }' $(git ls-files --cached --others --exclude-standard '*.rs' | grep -vE '(^|/)tests(/|\.rs$)') | sort -u
}

found=0
for crate in tidespool pressure; do
    all="$(cd "$crate/src" && imports)"
    for folder in $(cut -d' ' -f1 <<<"$all" | sort -u); do
        edges="$(awk -v folder="$folder" '$1 == folder' <<<"$all")"
        if ! loop="$(cut -d' ' -f2,3 <<<"$edges" | tsort 2>&1 >/dev/null)"; then
            found=1
            printf 'a cycle within %s of %s:\n' "$folder" "$crate"
            members="$(sed -n 's/^tsort: //p' <<<"$loop" | grep -v ' ' | sort -u)"
            awk 'NR == FNR { member[$1]; next } ($2 in member) && ($3 in member) { printf "    %s imports %s in %s\n", $2, $3, $4 }' \
                <(printf '%s\n' "$members") <(printf '%s\n' "$edges")
        fi
    done
done
exit "$found"
