"After the tests: how long each chapter took. It is printed and never asserted: `benchmarks/run.py --only chapters` measures it."


def pytest_terminal_summary(terminalreporter):
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    times = sorted(value for r in reports for key, value in getattr(r, "user_properties", ()) if key == "chapter")
    if not times:
        return
    terminalreporter.section("seconds each chapter took")
    for name, seconds in times:
        terminalreporter.write_line(f"{seconds:6.1f}  {name}{'   over 90' if seconds > 90 else ''}")
