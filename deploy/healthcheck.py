#!/usr/bin/env python3
"""The HEALTHCHECK of the image: asks RSTREAM_HEALTH_URL (a worker's or exporter's /healthz). Exit code 0: it said 2xx.

Without that variable there is nothing to ask, and the container counts as healthy while its process lives.
"""

import os
import sys
import urllib.request

url = os.environ.get("RSTREAM_HEALTH_URL")
if url:
    try:
        with urllib.request.urlopen(url, timeout=4) as reply:
            print(reply.status, reply.read(200).decode(errors="replace").strip())
    except (OSError, ValueError) as error:  # HTTPError and URLError are OSErrors
        sys.exit(f"{url}: {error}")
