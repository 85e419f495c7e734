// Parses LogQL with Grafana's grammar: reads a JSON list of expressions, and writes the list of those with an error.
const { parser } = require("@grafana/lezer-logql");

function hasError(expression) {
  let error = false;
  parser.parse(expression).iterate({
    enter(node) {
      error ||= node.type.isError; // a return value of false would skip the children
    },
  });
  return error;
}

const expressions = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(expressions.filter(hasError)));
