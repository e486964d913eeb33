import { defineConfig } from "vite";

// The names carry no hash: the built files are committed, and the gateway answers them by exact name with an etag.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../src/codriver/apps/console/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: false,
    target: "es2022",
    rollupOptions: {
      output: { entryFileNames: "console.js", assetFileNames: "console[extname]" },
    },
  },
});
