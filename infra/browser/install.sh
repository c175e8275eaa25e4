#!/bin/sh
# Chromium and a Chinese font from Debian's packages, for the tests of the live page. The product needs neither.
set -eu
as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-noto-cjk
chromium --version
