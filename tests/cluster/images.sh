#!/usr/bin/env bash
# Makes stand-ins for the public images where none can be pulled: a Debian base, and Debian's Prometheus on it.
#
# usage: images.sh          makes what is missing; prints the variables for docker-compose.yml, one NAME=VALUE a line
#
# It uses this machine's own apt sources and CA certificates: such an image trusts what this machine trusts, so it is
# never to be pushed. A second run takes seconds: the file systems are cached outside the checkout.
set -euo pipefail

readonly BASE=local/debian:bookworm-slim PROMETHEUS=local/prometheus:debian
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/iroh-broker/images
readonly CERTIFICATES=/etc/ssl/certs/ca-certificates.crt

say() { echo "$*" >&2; }

need_tools() {
    command -v mmdebstrap >/dev/null && command -v zstd >/dev/null && return
    if [ "$(id -u)" != 0 ]; then
        say "mmdebstrap and zstd are needed. As root, type: apt-get install --no-install-recommends mmdebstrap zstd"
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap zstd >/dev/null
}

# The machine's own certificates go in, so that apt, pip and cargo inside `docker build` reach what this machine reaches.
# In a process group of its own: mmdebstrap ends its whole group when it fails, and that would be whoever calls this.
bootstrap() {
    local file sources=()
    UNFINISHED=$(mktemp "$CACHE/base.XXXXXX")  # of its own, so that a run that was cut short is in nobody's way
    trap 'rm -f "$UNFINISHED"' EXIT
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/debian.list; do
        if [ -s "$file" ]; then sources+=("$file"); fi
    done
    # shellcheck disable=SC2016  # $1 is mmdebstrap's
    setsid --wait mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --customize-hook='if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
            cp /usr/local/share/ca-certificates/*.crt "$1"/usr/local/share/ca-certificates/
            chroot "$1" update-ca-certificates >/dev/null 2>&1; fi' \
        bookworm - "${sources[@]}" | zstd -q -3 >"$UNFINISHED"
    mv "$UNFINISHED" "$CACHE/base.tar.zst"
}

make_base() {
    docker image inspect "$BASE" >/dev/null 2>&1 && return
    mkdir -p "$CACHE"
    if [ ! -s "$CACHE/base.tar.zst" ]; then
        say "making $BASE: a minute or two the first time"
        need_tools
        bootstrap
    fi
    zstd -dc "$CACHE/base.tar.zst" | docker import \
        -c 'CMD ["bash"]' -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        -c "ENV SSL_CERT_FILE=$CERTIFICATES PIP_CERT=$CERTIFICATES CARGO_HTTP_CAINFO=$CERTIFICATES" - "$BASE" >/dev/null
}

make_prometheus() {
    docker image inspect "$PROMETHEUS" >/dev/null 2>&1 && return
    say "making $PROMETHEUS"
    docker build --quiet --tag "$PROMETHEUS" - >/dev/null <<DOCKERFILE
FROM $BASE
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /prometheus && chown prometheus: /prometheus
USER prometheus
VOLUME ["/prometheus"]
EXPOSE 9090
ENTRYPOINT ["/usr/bin/prometheus"]
DOCKERFILE
}

docker info >/dev/null 2>&1 || { say "there is no Docker engine here, or no permission to use it (docker info)"; exit 3; }
make_base
make_prometheus
echo "BASE_IMAGE=$BASE"
echo "BUILD_IMAGE=$BASE"
echo "PROMETHEUS_IMAGE=$PROMETHEUS"
