def export(config, *, directory, report):
    return {}
