# One image per process, each of them a single static program: no shell, no
# package, no user but the one below. `hack/images` compiles the programs and
# calls this with the folder that holds them as the context.
#
# Static glibc resolves names here: since 2.34 the sources `files` and `dns` are
# part of it, and without /etc/nsswitch.conf it asks exactly these two.

FROM scratch AS base
# The roots of trust for https://, s3:// and hf:// models.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532

FROM base AS llava-operator
COPY llava-operator /llava-operator
ENTRYPOINT ["/llava-operator"]

FROM base AS llava-router
COPY llava-router /llava-router
ENTRYPOINT ["/llava-router"]

FROM base AS llava-worker
COPY llava-worker /llava-worker
ENTRYPOINT ["/llava-worker"]

# The project's own small model, to be mounted as an image volume.
FROM scratch AS llava-shapes
COPY llava-shapes /
