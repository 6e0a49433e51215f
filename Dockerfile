# The images that pods run. Build them with `docker build --target taskpipeline .` and
# `--target demo`, or build both with `cargo xtask image`. They have no shell and no package
# manager, do not run as root, and write nothing to their file system. `--target edge`, for
# docker-compose.yml, has Node.
#
# The bases are arguments, so you can use a mirror, another Debian or a machine without a registry.
# The first base has Rust, a C compiler and make. The second has the C library and the public
# certificate authorities, which include Cloudflare's. The digests are those of the indexes, which
# cover every architecture (`docker buildx imagetools inspect` shows a newer digest).
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f
ARG NODE_IMAGE=docker.io/library/node:22-bookworm-slim@sha256:43ac6c60b8f89723f746e8a92ce91abd5017e627ce1ddfe4238355d3a30b772c

FROM ${RUST_IMAGE} AS source
WORKDIR /src
# Line tables are three quarters of a program. A backtrace names functions without them.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo
COPY . .

# The compiled dependencies stay in the builder's cache, which other clones share. So the program is
# copied out of the cache. Cargo goes by the times of files, so `touch` prevents that it takes the
# program of another clone.
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

# xtask downloads the tools that compile the Worker into a cache of its own.
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
    && sed '/^\[build\]/,/^$/d' edge/wrangler.toml > /out/wrangler.toml \
    && ! grep 'command = ' /out/wrangler.toml

# The Worker in workerd with a local KV, to try it. In production, Cloudflare runs the Worker.
FROM node AS edge
LABEL org.opencontainers.image.title="TaskPipeline edge, local" \
      org.opencontainers.image.description="The edge Worker in workerd, with a local KV and its API" \
      org.opencontainers.image.source="https://github.com/taskpipeline/taskpipeline" \
      org.opencontainers.image.licenses="MIT"
WORKDIR /edge
COPY edge/package.json edge/package-lock.json edge/kv-api.mjs ./
# No install scripts, as in xtask: those of esbuild and workerd only check or copy existing files.
RUN --mount=type=cache,id=taskpipeline-npm,target=/root/.npm npm ci --omit=dev --ignore-scripts --no-audit --no-fund
COPY --from=build-edge /out/wrangler.toml ./
COPY --from=build-edge /out/build ./build
# Wrangler writes its bundle to .wrangler, and a mount there may inherit the mode of the directory.
# /data holds the KV.
RUN mkdir --mode=1777 .wrangler && mkdir /data && chown node:node /data
USER 1000:1000
# As in `cargo xtask up`: no telemetry, no lookup of this machine's location, no store of traces.
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
      org.opencontainers.image.description="A simulated REST API of Cloudflare KV in memory, with the pages of the edge" \
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
