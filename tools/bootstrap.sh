#!/bin/sh
# Creates the virtual environment VENV (argument 1), or lists everything that this machine lacks for it.
# Environment: PYTHON names the interpreter (else the first of the list below that is >= 3.11), CXX the compiler.
set -eu

venv=$1
missing=""

lacks() {
    missing="$missing
  - $*"
}

version_of() {
    "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "does not run"
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # sets python, or adds to missing
    found=""
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        python=$(command -v "$name" 2>/dev/null) || continue
        if is_new_enough "$python"; then
            check_python
            return
        fi
        found="$found $python ($(version_of "$python"))"
    done
    python=""
    lacks "Python >= 3.11. Found:${found:- none}. Debian, Ubuntu: apt install python3 python3-venv python3-dev;" \
        "or name another: make PYTHON=/path/to/python"
}

check_python() {
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        lacks "the venv module of $python. Debian, Ubuntu: apt install $package-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        lacks "the C headers of $python. Debian, Ubuntu: apt install $package-dev"
}

find_compiler() { # sets compiler, or adds to missing
    for name in ${CXX:-c++ g++ clang++}; do
        if compiler=$(command -v "$name" 2>/dev/null); then
            echo 'int main() { return []<class T>(T x) { return x; }(0); }' |
                "$compiler" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null ||
                lacks "C++20 in $compiler. g++ >= 11 or clang++ >= 14 has it; name one: make CXX=/path/to/c++"
            return
        fi
    done
    lacks "a C++ compiler (looked for ${CXX:-c++, g++, clang++}). Debian, Ubuntu: apt install g++"
}

find_python
find_compiler
if [ -n "$missing" ]; then
    printf 'shale: this machine lacks%s\n' "$missing" >&2
    exit 1
fi
if ! [ -x "$venv/bin/python" ] || ! is_new_enough "$venv/bin/python"; then
    echo "shale: creating $venv with $python ($(version_of "$python")); compiler $compiler"
    "$python" -m venv --clear "$venv"
fi
# Dependency groups (pip install --group) came with pip 25.1.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
