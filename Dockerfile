# docker build -t lit_moss . ; docker run --gpus all --shm-size 8g -v "$PWD":/data -w /data lit_moss fit -c conf/quickstart.yaml
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv git make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY lit_moss lit_moss
COPY callbacks callbacks
COPY experiments experiments
COPY conf conf
RUN make .venv/ready-talk
ENV LIT_MOSS_CACHE=/data/.cache/lit_moss
ENV PATH="/app/.venv/bin:$PATH"
ENTRYPOINT ["python", "-m", "lit_moss"]
