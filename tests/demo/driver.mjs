// Drives Chromium for the tests: a line of JSON in, `{code, options}`; what its code returns goes out.
// Arguments: the folder of node_modules, Chromium, options of the context as JSON.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [modules, executablePath, given] = process.argv.slice(2);
const { chromium, devices } = createRequire(`${modules}/package.json`)("playwright-core");
const { device, ...options } = JSON.parse(given);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const context = await browser.newContext({ ...(device ? devices[device] : {}), ...options });
const page = await context.newPage();
const problems = [];
page.on("pageerror", (error) => problems.push(String(error)));
page.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
page.setDefaultTimeout(60000);

const Code = Object.getPrototypeOf(async () => {}).constructor;
for await (const line of createInterface({ input: process.stdin })) {
  const { code, values } = JSON.parse(line);
  try {
    const value = await new Code("page", "context", "values", code)(page, context, values);
    console.log(JSON.stringify({ value, problems: problems.splice(0) }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error), problems: problems.splice(0) }));
  }
}
await browser.close();
