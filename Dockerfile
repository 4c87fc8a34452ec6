# One image for the three services and the `parlor` command: docker build -t parlor .
FROM python:3.13-slim

RUN useradd --system --uid 10001 --create-home parlor
WORKDIR /app

COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock

COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

USER parlor
WORKDIR /home/parlor
ENV PYTHONUNBUFFERED=1 DRAIN_DELAY=2000
EXPOSE 50051 9051
CMD ["python", "-m", "services.booking"]
