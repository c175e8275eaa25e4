#!/bin/bash
# Unpack Debian's prometheus package (prometheus and promtool) into var/prometheus. Needs apt and its configured
# sources, no root: where the system's package lists are missing, lists of our own are fetched into var/.
set -euo pipefail
cd "$(dirname "$0")/../.."
home="$PWD/var/prometheus"
if [ -x "$home/promtool" ] && [ -x "$home/prometheus" ]; then exit 0; fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "apt-get and dpkg-deb are not here: put prometheus and promtool on PATH instead" >&2
    exit 1
}
work="$home/work"
mkdir -p "$work/lists/partial" "$work/archives/partial"
trap 'rm -rf "$work"' EXIT
cd "$work"
private=(-q -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives")
if ! apt-get "${private[@]}" download prometheus >log 2>&1; then
    private+=(-o Dir::State::lists="$work/lists")
    { apt-get "${private[@]}" update && apt-get "${private[@]}" download prometheus; } >log 2>&1 || {
        tail -3 log >&2
        exit 1
    }
fi
dpkg-deb -x prometheus_*.deb unpacked
mv unpacked/usr/bin/prometheus unpacked/usr/bin/promtool "$home/"
"$home/promtool" --version 2>&1 | head -1
