"""What a response says to the proxy, readable."""

import base64
import json


def said(headers, sent):
    nonce = sent["Steadfast-Session-Request"]
    op, patch = headers.get("Steadfast-Session-Op"), headers.get("Steadfast-Session-Patch")
    if patch is not None:
        own, encoded = patch.split(".")
        assert own == nonce
        patch = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    return op and op.replace(nonce, "RID"), patch
