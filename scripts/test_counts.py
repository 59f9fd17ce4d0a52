"""Counts real results: prints "PASSED FAILED" of one report and names what failed on stderr.

    test_counts.py ctest REPORT.xml      a cmocka program counts each of its cases, any other program is one
    test_counts.py pytest REPORT.xml     skipped counts as failed: nothing is meant to be skipped
"""
import re
import sys
import xml.etree.ElementTree as ElementTree

CASES = re.compile(r"\[  (PASSED|FAILED)  \] (\d+) test\(s\)")


def count_program(case):
    failed = case.get("status") != "run" or case.find("failure") is not None
    output = case.findtext("system-out") or ""
    cases = {"PASSED": 0, "FAILED": 0}
    for verdict, number in CASES.findall(output):
        cases[verdict] += int(number)
    if sum(cases.values()) == 0:
        cases["FAILED" if failed else "PASSED"] = 1
    elif failed and cases["FAILED"] == 0:      # its cases passed, then it crashed or leaked
        cases["FAILED"] = 1
    return cases["PASSED"], cases["FAILED"]


def count_pytest_case(case):
    failed = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    return (0, 1) if failed else (1, 0)


def main(kind, path):
    count = {"ctest": count_program, "pytest": count_pytest_case}[kind]
    passed = failed = 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        ok, bad = count(case)
        passed += ok
        failed += bad
        if bad:
            print(f"FAILED {case.get('classname', '')} {case.get('name')}", file=sys.stderr)
    print(passed, failed)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("ctest", "pytest"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
