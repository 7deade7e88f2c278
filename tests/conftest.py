"""One width for every table, whatever terminal the tests run in: names that are looked for are not broken over lines."""

import os

os.environ["COLUMNS"] = "200"  # read by rich when a console is made, so before anything of pospatch is imported
