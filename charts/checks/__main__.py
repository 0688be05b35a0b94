"""Runs every check, and says which promises are broken and how."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from checks import docs, examples, manifests, values
from checks.chart import RELEASES, matrix, render

CHECKS = [
    manifests.the_chart_lints,
    manifests.every_manifest_is_valid_in_every_kubernetes_release,
    manifests.every_pod_meets_pod_security_restricted,
    manifests.rights_name_verbs_and_resources_and_reach_no_secret,
    manifests.the_namespaced_scope_has_no_cluster_role,
    manifests.crds_are_kept_unless_told_otherwise,
    values.wrong_values_are_refused_and_the_message_names_the_field,
    values.the_schema_knows_exactly_the_values_that_exist,
    values.every_value_has_an_effect,
    examples.examples_are_valid,
    docs.links_lead_somewhere,
    docs.every_reason_has_a_section_in_troubleshooting,
    docs.commands_name_files_that_exist,
    docs.helm_commands_set_values_that_exist,
    docs.values_in_prose_exist,
]


def main():
    begin = time.monotonic()
    # Helm takes most of the time, and runs outside this interpreter.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for file in matrix():
            for version in RELEASES:
                pool.submit(render, file, version)
    broken = 0
    for check in CHECKS:
        try:
            found = sorted(set(check()))
        except Exception as error:  # a check that cannot run is a broken promise
            found = [f"{type(error).__name__}: {error}"]
        print(f"{'FAIL' if found else 'ok  '} {check.__name__}")
        for line in found:
            print(f"     {line}")
        broken += bool(found)
    seconds = time.monotonic() - begin
    print(f"chart: {len(CHECKS) - broken} passed, {broken} failed in {seconds:.0f} s")
    return 1 if broken else 0


sys.exit(main())
