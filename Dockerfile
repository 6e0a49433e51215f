# The images that pods run: `docker build --target taskpipeline .` and `--target demo`, or `cargo xtask image`, which
# does both: no shell and no package manager in them, nobody's root, and nothing that is written to. `--target edge`, which
# is for docker-compose.yml, has Node.
#
# The bases are arguments, so that a mirror, another Debian or a machine without a registry can bring its own: the first has
# Rust, a C compiler and make; the second the C library, and the certificate authorities that Cloudflare's are among. The digests
# are those of their indexes, for every processor (`docker buildx imagetools inspect` tells a newer one).
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f
ARG NODE_IMAGE=docker.io/library/node:22-bookworm-slim@sha256:43ac6c60b8f89723f746e8a92ce91abd5017e627ce1ddfe4238355d3a30b772c

FROM ${RUST_IMAGE} AS source
WORKDIR /src
# A backtrace names functions without the tables of lines, which are three quarters of a program.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo
COPY . .

# The dependencies stay compiled in the builder's cache, which other clones share; so what is kept is copied out of it,
# and cargo, which goes by the times of files, must not take what another clone has compiled for ours.
FROM source AS build-taskpipeline
RUN --mount=type=cache,id=taskpipeline-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=taskpipeline-target,target=/src/target \
    find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo build --release --locked --package taskpipeline-processor --bin taskpipeline \
    && install -D target/release/taskpipeline /out/taskpipeline

FROM source AS build-demo
RUN --mount=type=cache,id=taskpipeline-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=taskpipeline-target,target=/src/target \
    find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo build --release --locked --package taskpipeline-simulator --bin taskpipeline-simulator \
    && install -D target/release/taskpipeline-simulator /out/taskpipeline-simulator

FROM ${NODE_IMAGE} AS node

# xtask brings the tools that compile the Worker, into a cache of its own.
FROM source AS build-edge
COPY --from=node /usr/local/bin/ /usr/local/bin/
COPY --from=node /usr/local/lib/node_modules/ /usr/local/lib/node_modules/
ENV TASKPIPELINE_CACHE=/var/cache/taskpipeline
RUN --mount=type=cache,id=taskpipeline-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=taskpipeline-target,target=/src/target \
    --mount=type=cache,id=taskpipeline-tools,target=/var/cache/taskpipeline \
    find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo xtask wasm \
    && mkdir /out && cp -r edge/build /out/build \
    && sed '/^# Gets what/,/^$/d' edge/wrangler.toml > /out/wrangler.toml \
    && ! grep 'command = ' /out/wrangler.toml

# The Worker in workerd with its local KV, for trying out: what serves it for real is Cloudflare.
FROM node AS edge
LABEL org.opencontainers.image.title="TaskPipeline edge, local" \
      org.opencontainers.image.description="The edge Worker in workerd, with a local KV and its API" \
      org.opencontainers.image.source="https://github.com/taskpipeline/taskpipeline" \
      org.opencontainers.image.licenses="MIT"
WORKDIR /edge
COPY edge/package.json edge/package-lock.json edge/kv-api.mjs ./
# No install scripts, as in xtask: those of esbuild and workerd only check or copy what is there already.
RUN --mount=type=cache,id=taskpipeline-npm,target=/root/.npm npm ci --omit=dev --ignore-scripts --no-audit --no-fund
COPY --from=build-edge /out/wrangler.toml ./
COPY --from=build-edge /out/build ./build
# Wrangler puts its bundle into the one, and what is mounted there may take over its mode; the KV lies in the other.
RUN mkdir --mode=1777 .wrangler && mkdir /data && chown node:node /data
USER 1000:1000
# As `cargo xtask up` has it: no telemetry, nobody asked where this machine is, no store of traces.
ENV CI=1 HOME=/tmp \
    WRANGLER_SEND_METRICS=false WRANGLER_LOG_PATH=/tmp/wrangler-logs \
    CLOUDFLARE_CF_FETCH_ENABLED=false X_LOCAL_OBSERVABILITY=false
VOLUME /data
EXPOSE 8787
ENTRYPOINT ["node_modules/.bin/wrangler"]
CMD ["dev", "--ip", "0.0.0.0", "--port", "8787", "--inspector-port", "0", "--persist-to", "/data", \
     "--log-level", "warn", "--show-interactive-dev-session=false", "--var", "LIST_CACHE_SECONDS:0"]

FROM ${RUNTIME_IMAGE} AS demo
LABEL org.opencontainers.image.title="TaskPipeline demo" \
      org.opencontainers.image.description="Cloudflare KV's REST API, simulated in memory, with the edge's pages over it" \
      org.opencontainers.image.source="https://github.com/taskpipeline/taskpipeline" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build-demo /out/ /
USER 65532:65532
EXPOSE 8788 8080
ENTRYPOINT ["/taskpipeline-simulator"]

FROM ${RUNTIME_IMAGE} AS taskpipeline
LABEL org.opencontainers.image.title="TaskPipeline" \
      org.opencontainers.image.description="The processor and the operator: task events from NATS to Cloudflare KV" \
      org.opencontainers.image.source="https://github.com/taskpipeline/taskpipeline" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build-taskpipeline /out/ /
USER 65532:65532
EXPOSE 3001 3002
ENTRYPOINT ["/taskpipeline"]
