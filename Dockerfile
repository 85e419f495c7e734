# The last stage contains the exporter only, and runs as an unprivileged user. It writes no files, so --read-only works.
#
#   docker build -t celery-exporter --build-arg REVISION="$(git rev-parse HEAD)" .
#   docker run --network celery --read-only --cap-drop ALL -p 9808:9808 -e CELERY_BROKER_URL=redis://redis:6379/0 \
#     celery-exporter
#
# Without a shell and a package manager in the image:
#
#   docker build --build-arg BASE=gcr.io/distroless/python3-debian12 .
#
# Names of images contain the registry, because podman has no default registry.

# The Python version of the tests.
ARG PYTHON=3.11
# The image that the last stage starts from. It needs the same Python version.
ARG BASE=docker.io/library/python:${PYTHON}-slim-bookworm

FROM docker.io/library/python:${PYTHON}-slim-bookworm AS build
WORKDIR /build
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
COPY requirements.lock ./
# pip installs uv, and uv installs the rest. Both verify the hashes of the lock file.
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && pip install --no-cache-dir --require-hashes -r uv.txt
COPY pyproject.toml README.md LICENSE ./
# The dependencies of the exporter and of --otlp-endpoint, constrained by the lock file, which also contains development
# tools.
RUN uv venv /opt/celery-exporter \
    && uv pip install --python /opt/celery-exporter --compile-bytecode --only-binary :all: \
        --require-hashes --constraints requirements.lock --extra otlp -r pyproject.toml
COPY celery_exporter celery_exporter
COPY alerts alerts
COPY dashboards dashboards
COPY hatch_build.py ./
ARG REVISION=unknown
RUN echo "${REVISION}" > REVISION \
    && uv build --wheel --require-hashes --build-constraints requirements.lock --out-dir wheels . \
    && uv pip install --python /opt/celery-exporter --compile-bytecode --no-deps wheels/*.whl \
    && mkdir state

# For docker-compose.yml: the workers and the client of the demo, with the result backend for PostgreSQL.
FROM build AS demo
RUN uv pip install --python /opt/celery-exporter --compile-bytecode --only-binary :all: \
        --require-hashes --constraints requirements.lock --group results
ENV PATH=/opt/celery-exporter/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 65532:65532

FROM ${BASE} AS base

# Python is in /usr/local/bin in the images of Python, and in /usr/bin in distroless images.
FROM build AS linked
ARG PYTHON
ARG BASE
WORKDIR /opt/celery-exporter
RUN --mount=type=bind,from=base,target=/base \
    for directory in /usr/local/bin /usr/bin; do \
        if [ -e "/base${directory}/python${PYTHON}" ]; then \
            ln -sf "${directory}/python${PYTHON}" bin/python \
            && sed -i "s,^home = .*,home = ${directory}," pyvenv.cfg \
            && exit; \
        fi; \
    done; \
    echo "${BASE} has no Python ${PYTHON}. Set PYTHON to its version." >&2; exit 1

FROM base
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="celery-exporter" \
      org.opencontainers.image.description="Prometheus exporter for Celery" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=linked /opt/celery-exporter /opt/celery-exporter
# A volume for --state-file takes its owner from this directory.
COPY --from=build --chown=65532:65532 /build/state /var/lib/celery-exporter
ENV PATH=/opt/celery-exporter/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# A numeric user id, which runAsNonRoot of Kubernetes requires.
USER 65532:65532
EXPOSE 9808
ENTRYPOINT ["celery-exporter"]
# The check reads host, port and --web.config.file from the same environment variables as the exporter.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["celery-exporter", "healthcheck"]
