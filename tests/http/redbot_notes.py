"""``python -m tests.http.redbot_notes URL...``: what redbot has to say of each, a JSON object a line."""

from __future__ import annotations

import json
import sys
from configparser import ConfigParser

import thor
from redbot.formatter import find_formatter
from redbot.resource import HttpResource


def main() -> None:
    """Check the URLs side by side in one process, for redbot takes longer to start than to check."""
    parser = ConfigParser()
    parser.read_dict({"redbot": {"enable_local_access": "True"}})
    left = set(sys.argv[1:])

    def check(url: str) -> None:
        resource = HttpResource(parser["redbot"])
        resource.set_request(url)
        written: list[str] = []
        formatter = find_formatter("har")(parser["redbot"], resource, written.append, {})
        formatter.bind_resource(resource)

        @thor.events.on(formatter)
        def formatter_done() -> None:
            (entry,) = json.loads("".join(written))["log"]["entries"]
            notes = [[note["level"], note["summary"]] for note in entry["_red_messages"]]
            print(json.dumps({"url": url, "status": entry["response"]["status"], "notes": notes}))
            left.discard(url)
            if not left:
                thor.stop()

        resource.check()

    for url in sys.argv[1:]:
        check(url)
    thor.run()


if __name__ == "__main__":
    main()
