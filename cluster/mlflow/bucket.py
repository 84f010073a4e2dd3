"""Makes the bucket of docker-compose.yml if it is not there yet, once the store answers."""
from __future__ import annotations

import os
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError

PATIENCE = 120.0  # seconds


def main() -> None:
    name = os.environ["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://").partition("/")[0]
    endpoint = os.environ["MLFLOW_S3_ENDPOINT_URL"]
    client = boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}))
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=name)
            print(f"bucket '{name}' is there")
            return
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 or time.monotonic() > end:
                raise
        except (EndpointConnectionError, HTTPClientError):
            if time.monotonic() > end:
                raise
        time.sleep(1)


if __name__ == "__main__":
    main()
