"""No secret leaves the process: passwords in URLs and the values of secret environment variables become ***."""
from __future__ import annotations

import os
import re

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*://)[^\s/'\"]+@")  # greedy up to the last @ before the path
_IN_QUERY = re.compile(r"(?i)(?P<key>[?&;](?:[\w.\-]*(?:token|passw|secret|api_?key|signature|credential)[\w.\-]*)=)[^\s&;#'\"]+")
_SECRET_NAME = re.compile(r"(?i)(token|password|passwd|secret|credential|api_?key)|^AWS_.*(KEY|TOKEN)")
_NO_SECRET = re.compile(r"(?i)_(path|file|url|uri|mode|dir)$")  # RAY_AUTH_TOKEN_PATH names a file, it is not the token


def redact(text: str) -> str:
    """The text without userinfo in URLs, secret query parameters, and values of variables such as *_TOKEN or AWS_*KEY."""
    text = _USERINFO.sub(r"\g<scheme>***@", text)
    text = _IN_QUERY.sub(r"\g<key>***", text)
    for name, value in os.environ.items():
        if len(value) >= 6 and is_secret(name):
            text = text.replace(value, "***")
    return text


def is_secret(name: str) -> bool:
    """Does a variable of this name hold a secret?"""
    return _SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None
