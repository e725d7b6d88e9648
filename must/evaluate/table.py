def table(results, width=100):
    lines = []
    for n, c in results["columns"].items():
        lines.append(
            f"{n:30} "
            + str(
                {
                    s: {t: [round(x, 6) if x is not None else None for x in v] for t, v in d.items()}
                    for s, d in c["scores"].items()
                }
            )
        )
    return "\n".join(lines)
