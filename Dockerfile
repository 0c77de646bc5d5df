# The project on a CPU, and its quickstart. Not built or run so far; a test checks what it names.
#
#   docker build --tag pangu-sigma .
#   docker run --rm --memory 10g --shm-size 1g --volume "$PWD/runs:/pangu-sigma/runs" pangu-sigma
#   docker run --rm --interactive --tty pangu-sigma bash
#
# With Ascend, take an image that holds your CANN, and docs/ascend.md from step 3 on.
FROM python:3.11-slim

# MindSpore's wheel links against the first two; bash, and util-linux for setpriv, are in the image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/*

# An active virtual environment: the scripts install into it, and make none of their own.
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv

WORKDIR /pangu-sigma
COPY . .
RUN pip install --editable '.[cpu,plots]'

CMD ["bash", "scripts/quickstart.sh"]
