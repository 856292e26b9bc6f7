# One image, CPU or CUDA: `docker build .` or `docker build --build-arg VARIANT=cuda .`
# cpu: TORCH_INDEX may name a package index with CPU builds of torch, which are a tenth of the size.
# cuda: torch comes with its CUDA libraries from the default index; the host gives the driver.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
# The secret is an optional pip.conf for builds behind a proxy; it never enters the image.
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    python3 -m venv /opt/labelmux && \
    case "$VARIANT" in cpu|cuda) ;; *) echo "VARIANT is '$VARIANT'; give cpu or cuda" >&2; exit 1 ;; esac && \
    if [ "$VARIANT" = cpu ] && [ -n "$TORCH_INDEX" ]; then export PIP_INDEX_URL="$TORCH_INDEX"; fi && \
    /opt/labelmux/bin/pip install -c constraints.txt torch && \
    unset PIP_INDEX_URL && \
    /opt/labelmux/bin/pip install -c constraints.txt hatchling
# The kernels are compiled here for every vector unit they know; the final image has no compiler.
RUN if [ "$VARIANT" = cpu ]; then \
        apt-get update && apt-get install -y --no-install-recommends g++ && \
        rm -rf /var/lib/apt/lists/*; \
    fi
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY clients/python clients/python
COPY clients/web clients/web
COPY encoder encoder
COPY adapters adapters
COPY training training
COPY server server
COPY cli cli
# Then what only builds is dropped: headers, static libraries, tests.
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    /opt/labelmux/bin/pip install -c constraints.txt --no-build-isolation ./clients/python '.[otel]' && \
    /opt/labelmux/bin/python -m labelmux_encoder.kernels && \
    /opt/labelmux/bin/python -m labelmux_adapters.kernels && \
    /opt/labelmux/bin/pip uninstall -y hatchling pip setuptools && \
    cd /opt/labelmux/lib/python3.11/site-packages && \
    rm -rf torch/include torch/share torch/test && \
    find torch/bin -type f ! -name torch_shm_manager -delete && \
    find . -name '*.a' -delete && \
    find . -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +

FROM ${PYTHON_IMAGE}
ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="labelmux" \
      org.opencontainers.image.description="One frozen DeBERTa encoder, any number of text classifiers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      io.labelmux.variant="${VARIANT}"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin labelmux && \
    install -d -o labelmux -g labelmux /state
# Triton compiles the attention kernel for the GPU that it finds, and a launcher for it with this.
RUN if [ "$VARIANT" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && \
        rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/labelmux /opt/labelmux
# What a start imports is compiled here, the standard library too: a read-only root keeps nothing, so
# each start would compile it again. All of it would be 210 MB.
RUN /opt/labelmux/bin/python -c "import sys, py_compile as p, labelmux_cli.keys, labelmux_cli.main, labelmux_server.serve; \
    files = {getattr(module, '__file__', None) or '' for module in list(sys.modules.values())}; \
    [p.compile(file, invalidation_mode=p.PycInvalidationMode.UNCHECKED_HASH) for file in files if file.startswith('/') and file.endswith('.py')]"
ENV PATH=/opt/labelmux/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_CACHE=/state/hub \
    TRITON_CACHE_DIR=/state/triton \
    LABELMUX_HOST=0.0.0.0 \
    LABELMUX_PORT=8000 \
    LABELMUX_STATE_DIR=/state
USER 10001:10001
VOLUME /state
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os,urllib.request as u; u.urlopen('http://127.0.0.1:'+os.environ['LABELMUX_PORT']+'/health/ready', timeout=2)"]
CMD ["labelmux", "serve"]
