"""Prints pip constraints that pin every direct dependency to the oldest version that setup.cfg allows."""

import configparser
import re

config = configparser.ConfigParser()
config.read("setup.cfg", encoding="utf-8")
extras = config["options.extras_require"]
lines = [config["options"]["install_requires"], extras["test"]]
for line in sorted({line.strip() for text in lines for line in text.splitlines()}):
    if bound := re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+).*", line):
        print(f"{bound[1]}=={bound[2]}.*" if bound[2].count(".") < 2 else f"{bound[1]}=={bound[2]}")
