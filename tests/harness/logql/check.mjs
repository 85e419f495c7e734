// Prints the position of the first syntax error of each query, or null. The queries are a JSON array on stdin.
import { readFileSync } from "node:fs";
import { parser } from "@grafana/lezer-logql";

const queries = JSON.parse(readFileSync(0, "utf8"));
const errors = queries.map((query) => {
  let position = null;
  parser.parse(query).iterate({
    enter(node) {
      if (node.type.isError && position === null) position = node.from;
    },
  });
  return position;
});
process.stdout.write(JSON.stringify(errors));
