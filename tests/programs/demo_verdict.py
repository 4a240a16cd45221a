"""Ends `make demo`: compares the summary with what demo.c plants, and says what was found."""

import json
import sys

with open(sys.argv[1]) as file:
    found = json.load(file)
kinds = sorted(bad["kind"] for bad in found["bad_frees"])
leaks = [site for site in found["call_sites"] if "reassembly buffer" in site["types"]]
print(f"== found: {len(kinds)} bad frees ({', '.join(kinds)}) ==")
for site in leaks:
    print(f"== found: {site['blocks']} leaked blocks of type reassembly buffer, {site['bytes']} bytes ==")
if len(kinds) != 2 or "duplicate" not in kinds or [site["blocks"] for site in leaks] != [8]:
    sys.exit("This is not what was planted.")
