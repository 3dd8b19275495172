// What every client's script shares: run each scenario by itself, print what all came to as JSON.

export const baseURL = process.env.BASE_URL;
export const apiKey = process.env.API_KEY;
export const narrowKey = process.env.NARROW_KEY;
export const singleKey = process.env.SINGLE_KEY;

// Runs all; one that fails leaves its stack instead of a value.
export async function run(scenarios) {
  const outcomes = {};
  for (const [name, scenario] of Object.entries(scenarios)) {
    try {
      outcomes[name] = { value: await scenario() };
    } catch (error) {
      outcomes[name] = { error: `${error?.stack ?? error}` };
    }
  }
  console.log(`OUTCOMES ${JSON.stringify(outcomes)}`);
}
