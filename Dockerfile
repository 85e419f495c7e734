# The last stage is the exporter alone, as a user that owns nothing. It writes nothing either, so --read-only is fine.
#
#   docker build -t celery-exporter --build-arg REVISION="$(git rev-parse HEAD)" .
#   docker run --network celery --read-only --cap-drop ALL -p 9808:9808 -e CELERY_BROKER_URL=redis://redis:6379/0 \
#     celery-exporter
#
# tests/distribution/test_image.py follows these steps without an engine.

# The version that the tests run on.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /build
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
COPY requirements.lock ./
# pip checks uv, and uv the rest: each against the hashes in the lock file.
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && pip install --no-cache-dir --require-hashes -r uv.txt
COPY pyproject.toml README.md LICENSE ./
# What the exporter needs, in the versions of the lock file, which has the tools of its developers in it as well.
RUN uv venv /opt/celery-exporter \
    && uv pip install --python /opt/celery-exporter --compile-bytecode --only-binary :all: \
        --require-hashes --constraints requirements.lock -r pyproject.toml
COPY celery_exporter celery_exporter
COPY hatch_build.py ./
ARG REVISION=unknown
RUN echo "${REVISION}" > REVISION \
    && uv build --wheel --require-hashes --build-constraints requirements.lock --out-dir wheels . \
    && uv pip install --python /opt/celery-exporter --compile-bytecode --no-deps wheels/*.whl \
    && mkdir state

# For docker-compose.yml: the demo's workers and client, with what it takes to keep results in Postgres.
FROM build AS demo
RUN uv pip install --python /opt/celery-exporter --compile-bytecode --only-binary :all: \
        --require-hashes --constraints requirements.lock --group results
ENV PATH=/opt/celery-exporter/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 65532:65532

FROM python:${PYTHON}-slim-bookworm
ARG PYTHON
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="celery-exporter" \
      org.opencontainers.image.description="Prometheus exporter for Celery" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:${PYTHON}-slim-bookworm"
COPY --from=build /opt/celery-exporter /opt/celery-exporter
# For a volume with the --state-file, which takes over who owns it.
COPY --from=build --chown=65532:65532 /build/state /var/lib/celery-exporter
ENV PATH=/opt/celery-exporter/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 65532:65532
EXPOSE 9808
ENTRYPOINT ["celery-exporter"]
# It reads host, port and --web.config.file from the environment as the exporter does: set them there.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["celery-exporter", "healthcheck"]
