#!/bin/sh
# SeaweedFS as an S3 store with one identity. Without a configuration it would let anybody in.
set -eu
umask 077
: "${S3_ACCESS_KEY:?}" "${S3_SECRET_KEY:?}"
cat > /tmp/s3.json <<END
{"identities": [{"name": "mlflow", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
 "credentials": [{"accessKey": "$S3_ACCESS_KEY", "secretKey": "$S3_SECRET_KEY"}]}]}
END
exec weed server -dir=/data -ip.bind=0.0.0.0 -volume.max=0 -master.volumeSizeLimitMB=1024 \
    -s3 -s3.port=8333 -s3.config=/tmp/s3.json
