# syntax=docker/dockerfile:1
# quantcard: the bot (CPU) and the measuring image (CUDA).
#   docker build --target cpu  -t quantcard .
#   docker build --target cuda -t quantcard:cuda .
# The same steps run without Docker: tools/setup.sh does what the cpu target does.

FROM python:3.11-slim-bookworm AS build-cpu
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
# GGML_NATIVE=OFF: the image must run on other machines than the one that built it.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN python -m venv /opt/quantcard \
 && /opt/quantcard/bin/pip install --no-cache-dir "$(grep '^llama-cpp-python==' requirements.lock)" \
 && /opt/quantcard/bin/pip install --no-cache-dir -r requirements.lock
COPY . .
RUN /opt/quantcard/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap libgomp1 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 quantcard
COPY --from=build-cpu /opt/quantcard /opt/quantcard
ENV PATH=/opt/quantcard/bin:$PATH QUANTCARD_DB=/data/quantcard.db NUMBA_CACHE_DIR=/data/.numba
RUN mkdir /data && chown quantcard /data
USER quantcard
VOLUME /data
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["quantcard"]
CMD ["serve", "--host", "0.0.0.0"]

FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build-cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv build-essential \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
# 75 T4, 80 A100, 86 A10G, 89 L4/L40S, 90 H100/H200, 120 RTX PRO 6000: all that Hugging Face Jobs have. The stub stands for the driver that is only there at run time.
ARG CUDA_ARCHITECTURES="75;80;86;89;90;120"
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}"
RUN ln -sf /usr/local/cuda/lib64/stubs/libcuda.so /usr/lib/x86_64-linux-gnu/libcuda.so.1 \
 && python3 -m venv /opt/quantcard \
 && /opt/quantcard/bin/pip install --no-cache-dir "$(grep '^llama-cpp-python==' requirements.lock)" \
 && /opt/quantcard/bin/pip install --no-cache-dir -r requirements.lock \
 && /opt/quantcard/bin/pip install --no-cache-dir "$(grep '^nvidia-ml-py==' requirements-dev.lock)"
COPY . .
RUN /opt/quantcard/bin/pip install --no-cache-dir --no-deps .

# Also what Hugging Face Jobs run (docs/runners.md): "python -m jobs.remote" in place of the entrypoint.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 bubblewrap libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 quantcard
COPY --from=build-cuda /opt/quantcard /opt/quantcard
ENV PATH=/opt/quantcard/bin:$PATH QUANTCARD_DB=/data/quantcard.db NUMBA_CACHE_DIR=/data/.numba
RUN mkdir /data && chown quantcard /data
USER quantcard
VOLUME /data
WORKDIR /data
ENTRYPOINT ["quantcard"]
CMD ["--help"]
