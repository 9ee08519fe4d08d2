# The broker in a container: hub, node or any other command of `broker`.
#
# Two base images, both arguments, so that the same file works where nothing can be pulled (tests/cluster/images.sh).
# BuildKit is not needed: Compose 1.29 uses the old builder.
ARG BASE_IMAGE=debian:bookworm-slim
ARG BUILD_IMAGE=rust:1.95-slim-bookworm

# --- A wheel, and everything it needs, in /opt/broker -----------------------------------------------------------------
FROM ${BUILD_IMAGE} AS build
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# A wheel that was built outside and lies in dist/ is taken as it is (minutes saved); else it is built here.
RUN if ! ls dist/*.whl >/dev/null 2>&1; then \
        python3 -m venv /tmp/maturin && /tmp/maturin/bin/pip install --quiet 'maturin~=1.16' \
        && /tmp/maturin/bin/maturin build --release --out dist; \
    fi
RUN python3 -m pip install --quiet --no-compile --target /opt/broker dist/*.whl \
    && find /opt/broker -name '*.so' -exec strip --strip-unneeded {} + \
    && rm -rf /opt/broker/bin

# --- What runs: Python, tini, the broker, a user without rights ---------------------------------------------------------
FROM ${BASE_IMAGE} AS runtime
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /usr/share/doc /usr/share/man \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin broker \
    && mkdir /data /tickets /invites && chown broker: /data /tickets /invites
COPY --from=build /opt/broker /opt/broker
ENV PYTHONPATH=/opt/broker PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER broker
# Named volumes take over the owner of the folder that they are mounted on.
VOLUME ["/data", "/tickets"]
EXPOSE 4433/udp 9464/tcp
# bash and not Python: a check every few seconds in fifty containers must cost nothing.
HEALTHCHECK --interval=5s --timeout=2s --start-period=10s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["tini", "--", "python3", "-m", "broker"]
CMD ["--help"]

# --- The same with tools for networks: what breaks links on purpose, and routers (docker-compose.yml) -------------------
FROM runtime AS tools
USER root
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends iproute2 nftables \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /usr/share/doc /usr/share/man \
    && mkdir /targets

# --- What `docker build .` gives ----------------------------------------------------------------------------------------
FROM runtime
