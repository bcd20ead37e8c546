// Validates Kubernetes objects (a JSON array in the file given) against the schemas of npm's kubernetes-models packages, which lie in
// node_modules beside this file (the test copies it there). Prints one line per fault; exits with 1 when there is one.
import { readFileSync } from "node:fs";

const objects = JSON.parse(readFileSync(process.argv[2], "utf8"));
let faults = 0;
for (const object of objects) {
  const { apiVersion, kind } = object;
  const home = apiVersion.startsWith("monitoring.coreos.com/") ? "@kubernetes-models/prometheus-operator" : "kubernetes-models";
  const Model = (await import(`${home}/${apiVersion}/${kind}`))[kind];
  try {
    new Model(object).validate();
  } catch (error) {
    faults++;
    console.log(`${kind} ${object.metadata.name}: ${error.message}`);
  }
}
console.log(`${objects.length} objects, ${faults} faults`);
process.exit(faults === 0 ? 0 : 1);
