# The worker, the batch and the rest of the command line, without 3D Slicer. Nothing listens on a port.
#   docker build -t spdsegment .                                    for the CPU
#   docker build -t spdsegment --build-arg TORCH_INDEX= .           for NVIDIA cards: torch from pip's own index
#   docker run --rm -i spdsegment                                   the worker; this is a Worker command for Slicer
#   docker run --rm -v "$PWD:/data" spdsegment batch cases.csv --model kidney-mr --output results
# With --gpus all in front of the image's name it uses the cards. Results belong to the user who is named with --user.
FROM python:3.12-slim-bookworm AS build
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SPDSEGMENT_HOME=/opt/spdsegment/home
RUN python -m venv /opt/spdsegment && /opt/spdsegment/bin/pip install "$TORCH" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE.txt ./
COPY SPDSegmentLib SPDSegmentLib
COPY Resources Resources
RUN grep -v '^torch==' constraints.txt > /tmp/constraints.txt \
    && /opt/spdsegment/bin/pip install --constraint /tmp/constraints.txt '.[torch,preview,dicom,batch]' \
    && /opt/spdsegment/bin/spdsegment models fetch lite_medsam \
    && chmod -R a+rX /opt/spdsegment

FROM python:3.12-slim-bookworm
COPY --from=build /opt/spdsegment /opt/spdsegment
ENV PATH=/opt/spdsegment/bin:$PATH SPDSEGMENT_HOME=/opt/spdsegment/home MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 spdsegment
USER 1000
WORKDIR /data
ENTRYPOINT ["spdsegment"]
CMD ["worker"]
