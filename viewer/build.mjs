// Bundle src/main.js and what it imports into one script inside the Python package.
// `node build.mjs --check` writes nothing and fails where the committed script is another one.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "../src/attrain/report/templates/graph.js");

const made = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii",
  legalComments: "none",
  metafile: true,
  write: false,
});

// Every package of which a line is left in the bundle, with its licence.
const used = Object.values(made.metafile.outputs).flatMap((output) =>
  Object.entries(output.inputs)
    .filter(([, part]) => part.bytesInOutput > 0)
    .map(([path]) => /^node_modules\/([^/]+)\//.exec(path)?.[1])
    .filter(Boolean),
);
const licences = new Map();
for (const name of [...new Set(used)].sort()) {
  const about = JSON.parse(readFileSync(join(here, "node_modules", name, "package.json"), "utf8"));
  const text = readFileSync(join(here, "node_modules", name, "LICENSE"), "utf8").trim();
  if (/\*\/|<\/script/i.test(text)) throw new Error(`the licence of ${name} would end the script`);
  licences.set(text, [...(licences.get(text) ?? []), `${name} ${about.version}`]);
}
const notices = [...licences].map(([text, names]) => `${names.join(", ")}:\n\n${text}`);
const banner = `/*
Built from viewer/ by "npm run build"; change it there. Contains parts of these packages:

${notices.join("\n\n")}
*/
`;
const script = banner + made.outputFiles[0].text;
if (/<\/script|<!--/i.test(made.outputFiles[0].text)) throw new Error("the script would end itself");

if (process.argv.includes("--check")) {
  if (readFileSync(target, "utf8") !== script) {
    console.error(`${target} is not what viewer/ builds. Run: npm run build`);
    process.exit(1);
  }
} else {
  writeFileSync(target, script);
  console.log(`${target}: ${(script.length / 1024).toFixed(1)} KB`);
}
