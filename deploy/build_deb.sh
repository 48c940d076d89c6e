#!/bin/sh
# Build edge-gateway_VERSION_ARCH.deb: a separate venv under /opt/edge-gateway, from the hash-pinned wheels.
#
#   deploy/build_deb.sh OUT_DIR [WHEELS_DIR]
#
# WHEELS_DIR: take every wheel from there and do not use the network. PYTHON: an interpreter with pip and hatchling, of the
# target's version (.venv/bin/python). With SOURCE_DATE_EPOCH two builds of one commit are identical. The package starts the
# service after the installation; upgrade and rollback are `dpkg -i` of another version, and keep /etc/edge-gateway and
# /var/lib/edge-gateway.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
out=$(mkdir -p -- "$1" && CDPATH='' cd -- "$1" && pwd -P)
python=${PYTHON:-$here/.venv/bin/python}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/gateway/__init__.py")${VERSION_SUFFIX:-}
arch=$(dpkg --print-architecture)
series=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$python" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || date +%s)}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
venv=$root/opt/edge-gateway
site=$venv/lib/python$series/site-packages
mkdir -p "$site" "$venv/bin" "$root/DEBIAN" "$root/usr/bin" "$root/lib/systemd/system" "$root/etc/edge-gateway" \
    "$root/usr/share/doc/edge-gateway"

# ── the venv ──
offline=
[ $# -lt 2 ] || offline="--no-index --find-links $2"
# shellcheck disable=SC2086 # two words or an empty string
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --require-hashes \
    $offline --target "$site" -r "$here/requirements/runtime.txt"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index \
    --wheel-dir "$work/wheel" "$here"
"$python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-index --target "$site" \
    "$work"/wheel/*.whl
rm -rf "$site/bin"
printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$series" >"$venv/pyvenv.cfg"
ln -s /usr/bin/python3 "$venv/bin/python"
ln -s python "$venv/bin/python3"
cat >"$venv/bin/edge-gateway" <<'SCRIPT'
#!/opt/edge-gateway/bin/python -P
import sys

from gateway.cli import main

sys.exit(main())
SCRIPT
chmod 755 "$venv/bin/edge-gateway"
ln -s /opt/edge-gateway/bin/edge-gateway "$root/usr/bin/edge-gateway"

# ── units, settings and documents ──
cp "$here/deploy/edge-gateway.service" "$here/deploy/edge-gateway.socket" "$root/lib/systemd/system/"
cp "$here/deploy/edge-gateway.env" "$root/etc/edge-gateway/"
cp "$here/LICENSE" "$root/usr/share/doc/edge-gateway/copyright"
cp "$here/CHANGELOG.md" "$here/deploy/alerts.yml" "$here/deploy/dashboard.json" "$root/usr/share/doc/edge-gateway/"
chmod -R u=rwX,go=rX "$root"

# ── the package ──
cat >"$root/DEBIAN/control" <<CONTROL
Package: edge-gateway
Version: $version
Architecture: $arch
Maintainer: edge-gateway maintainers <root@localhost>
Depends: python3 (>= $series), python3 (<< $next)
Section: net
Priority: optional
Description: AI gateway of a site
 Sends each AI request to the backend, local or remote, that will finish it best.
CONTROL
echo /etc/edge-gateway/edge-gateway.env >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
/opt/edge-gateway/bin/python -m compileall -q /opt/edge-gateway/lib >/dev/null 2>&1 || true
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
if [ -z "$2" ]; then
    systemctl --quiet enable edge-gateway.socket edge-gateway.service
    systemctl start edge-gateway.socket edge-gateway.service || true
else
    systemctl try-restart edge-gateway.service || true
fi
SCRIPT
cat >"$root/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
find /opt/edge-gateway -name __pycache__ -type d -prune -exec rm -rf {} +
[ "$1" = remove ] && [ -d /run/systemd/system ] || exit 0
systemctl --quiet disable --now edge-gateway.service edge-gateway.socket || true
SCRIPT
cat >"$root/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload || true
[ "$1" = purge ] || exit 0
rm -rf /etc/edge-gateway /var/lib/edge-gateway /var/lib/private/edge-gateway
SCRIPT
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
deb=$out/edge-gateway_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$deb" >/dev/null
echo "$deb"
