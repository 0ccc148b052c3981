# One image for the API and the workers; the command says which.
#   docker build -t gallery-upgrade .                        CPU (pass PIP_EXTRA_INDEX_URL for PyTorch's CPU wheels)
#   docker build -t gallery-upgrade:gpu --build-arg EXTRA=gpu .   CUDA torch and faiss-gpu
FROM python:3.11-slim-bookworm

ARG EXTRA=cpu
ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1

WORKDIR /app
COPY pyproject.toml requirements.lock README.md ./
COPY service ./service
COPY workers ./workers
COPY models ./models
COPY edge ./edge
COPY migrations ./migrations
COPY client ./client
RUN pip install --constraint requirements.lock ./client ".[${EXTRA}]" \
    && useradd --create-home --uid 10001 gallery \
    && install --directory --owner gallery --group gallery /data

USER 10001
ENV GALLERY_DATA=/data GALLERY_BLOB_URL=file:///data/blobs
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["gallery-upgrade", "api", "--host", "0.0.0.0"]
